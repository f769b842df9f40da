//! The name under which programs ask for the library at run time: it changes when the interface does, and only then.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libmobile.so.0");
}
