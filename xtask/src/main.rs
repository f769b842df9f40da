//! Set up, demonstrate, test and measure.

fn main() {}
