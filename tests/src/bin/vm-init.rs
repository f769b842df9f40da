//! Process 1 of the virtual machines that `cargo xtask test vm` boots.

fn main() {
    mobile_tests::vm();
}
