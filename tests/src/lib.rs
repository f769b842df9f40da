//! The lab of network namespaces, and every end-to-end case.
