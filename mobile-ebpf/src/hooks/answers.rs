//! The hooks at which the kernel returns an address to a process: the sender of a datagram, and the
//! peer of a socket.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{context::Hook, dns, policy::ALLOW};

#[cgroup_sock_addr(recvmsg4)]
fn mobile_recvmsg4(ctx: SockAddrContext) -> i32 {
    dns::translate(&ctx, Hook::Ipv4);
    ALLOW
}

#[cgroup_sock_addr(recvmsg6)]
fn mobile_recvmsg6(ctx: SockAddrContext) -> i32 {
    dns::translate(&ctx, Hook::Ipv6);
    ALLOW
}

#[cgroup_sock_addr(getpeername4)]
fn mobile_getpeername4(ctx: SockAddrContext) -> i32 {
    dns::translate(&ctx, Hook::Ipv4);
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
fn mobile_getpeername6(ctx: SockAddrContext) -> i32 {
    dns::translate(&ctx, Hook::Ipv6);
    ALLOW
}
