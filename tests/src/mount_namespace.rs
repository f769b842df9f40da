//! Programs that see other files than the rest of the machine.

/// Returns the words that run the program and the arguments after them in a mount namespace of its
/// own, in which the shell command `prepare` has run.
#[must_use]
pub fn in_mount_namespace(prepare: &str) -> [String; 7] {
    let script = format!("{prepare} && exec \"$0\" \"$@\"");
    ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script].map(str::to_owned)
}
