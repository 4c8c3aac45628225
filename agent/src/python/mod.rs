//! CPython from outside: recognising an interpreter and finding its state. A look-up, never a stage.
