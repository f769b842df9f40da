//! Programs that see other files than the rest of the machine.

/// Returns the beginning of a command line. A program and its arguments, appended to it, run in a
/// mount namespace of their own, in which the shell command `prepare` has run first.
#[must_use]
pub fn in_mount_namespace(prepare: &str) -> [String; 7] {
    let script = format!("{prepare} && exec \"$0\" \"$@\"");
    ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script].map(str::to_owned)
}
