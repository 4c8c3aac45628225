//! What is made of a conversation when bytes are missing.
