//! mobile: keeps the connections of chosen processes alive while the links change.

fn main() {}
