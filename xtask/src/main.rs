//! Development tasks of pitviper.

fn main() {}
