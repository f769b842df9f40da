//! What the eBPF programs and the agent agree on: map keys, values and names.
#![no_std]
