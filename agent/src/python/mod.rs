//! CPython from outside: recognising an interpreter and finding its state. A look-up, never a stage.
//!
//! In three parts: the [`loader`] recognises an ELF file as a CPython and keeps what holds for the file, [`layout`] is what is
//! known of each version, and an [`instance`] is one interpreter in one process. Everything is read through `/proc`; nothing is ever
//! stopped, traced or written.

pub mod code;
pub mod contexts;
pub mod elf;
pub mod gilstate;
pub mod greenlets;
pub mod instance;
pub mod known_files;
pub mod layout;
pub mod lines;
pub mod loader;
pub mod maps;
pub mod memory;
pub mod method_table;
pub mod thread_pool;
pub mod untraceable;
pub mod version;

#[cfg(test)]
pub(crate) mod testing;

pub use contexts::ContextFunctions;
pub use greenlets::Greenlets;
pub use instance::{Instance, Limit, inspect};
pub use thread_pool::QueueFunctions;
pub use untraceable::Untraceable;
pub use version::Version;
