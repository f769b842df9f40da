//! Sets the library's soname, under which the dynamic linker looks for it. It changes only with the
//! interface.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libmobile.so.0");
}
