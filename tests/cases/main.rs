//! Every end-to-end case.
