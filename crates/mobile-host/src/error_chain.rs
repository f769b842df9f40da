//! Formats an error with its causes.

/// Joins an error and its causes in one line. Omits a cause whose text the error contains already,
/// as the errors of some libraries do.
#[must_use]
pub fn error_chain(error: &anyhow::Error) -> String {
    let mut chain = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if chain.is_empty() {
            chain = cause;
        } else if !chain.contains(&cause) {
            chain.push_str(": ");
            chain.push_str(&cause);
        }
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_the_error_repeats_is_printed_once() {
        let cause = std::io::Error::other("connection refused");
        let error =
            anyhow::Error::new(cause).context("cannot connect (connection refused)").context("no agent");
        assert_eq!(error_chain(&error), "no agent: cannot connect (connection refused)");
    }
}
