/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * mobile.h - connections that outlive a change of network, for chosen processes.
 *
 * The interface of "A Mechanism of Communication Continuation for Switching Network Devices" (Okuda, Takimoto, Mouri,
 * Okubo), section 4. Both functions ask the agent of this machine (`mobile agent`), and return 0 when it has done what was
 * asked: from then on it holds. They return -1 and set errno otherwise. Link with `pkg-config --cflags --libs mobile`.
 *
 * The agent is found as the program `mobile` finds it: at the socket named by the environment variable MOBILE_CONTROL_SOCKET
 * (ignored in a program that runs with more rights than whoever started it), else by `[control] socket` in
 * /etc/mobile/agent.toml, else at /run/mobile/agent.sock.
 *
 * Both may be called by any thread at any time; they are not async-signal-safe. They take milliseconds; an agent that does
 * not answer costs some seconds at most. Errors of both:
 *
 *   ENOENT, ECONNREFUSED  no agent is running
 *   EACCES                this user may not talk to it, or may not read the configuration
 *   ETIMEDOUT             the agent does not answer
 *   ECONNRESET, EPIPE     the agent hung up: it ends, or this user asks it too much at once
 *   EPROTO                the agent does not understand: it is of another version
 *   EBADMSG               the agent's configuration is damaged
 *   EIO                   the agent failed; its log says why
 *   EMFILE, ENFILE, ...   as of socket(2)
 */
#ifndef MOBILE_H
#define MOBILE_H

#include <netinet/in.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Sets (flag 1) or clears (flag 0) the MOBILE attribute of the process `pid`, with all its threads; 0 is the caller. Its next
 * connections take the MOBILE route, or the ordinary one; those it has stay as they are. Children inherit the attribute
 * across fork(), and it stays across execve(). Setting what is set is no error. Other processes are named by the numbers that
 * the agent sees.
 *
 * A user may change processes that run wholly as that user; root and the agent's `[control] group` any.
 *
 *   EINVAL      `flag` is neither 0 nor 1, or `pid` is negative or the number of a thread
 *   ESRCH       there is no such process
 *   EPERM       the process is, or has rights, of another user
 *   EOPNOTSUPP  the process is in another network namespace than the agent, which could not keep the promise there
 */
int inet_setmobile(int pid, int flag);

/*
 * Puts the MOBILE route in force: the default route, through the host virtual device, of all processes with the MOBILE
 * attribute. The agent owns that route and leads it to its relay, so there is one gateway at a time; whatever somebody has
 * removed of it is there again when this returns. It holds whether or not the relay can be reached at the moment: packets
 * wait for it.
 *
 * `gateway` says where the caller expects it to lead: null or INADDR_ANY means to wherever it does. Otherwise it is the
 * persistent address (the host virtual device's own) or the address at which the relay is reached now. The port does not
 * matter.
 *
 *   EADDRNOTAVAIL  the MOBILE route does not lead there; the agent's configuration decides where it does
 *   EAFNOSUPPORT   the address is not of family AF_INET
 *   ENETDOWN       there is no MOBILE route yet: this agent has never reached its relay, which assigns the address
 */
int inet_setmroute(const struct sockaddr_in *gateway);

#ifdef __cplusplus
}
#endif

#endif /* MOBILE_H */
