//! Sets the soname of `libmobile`, the name under which the dynamic linker looks for the library.
//! The soname changes only when the C interface changes.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libmobile.so.0");
}
