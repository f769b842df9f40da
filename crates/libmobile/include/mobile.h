/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * mobile.h - connections that survive a change of network, for chosen processes.
 *
 * The interface of "A Mechanism of Communication Continuation for Switching Network Devices"
 * (Okuda, Takimoto, Mouri, Okubo), section 4. Both functions ask the agent of this host
 * (`mobile agent`). They return 0 once the agent has done what was asked, so that it is in effect
 * from then on; otherwise they return -1 and set errno. Link with
 * `pkg-config --cflags --libs mobile`.
 *
 * The agent's control socket is the one named by the environment variable MOBILE_CONTROL_SOCKET
 * (ignored in a program with more rights than the user who started it), otherwise by
 * `[control] socket` in /etc/mobile/agent.toml, otherwise /run/mobile/agent.sock. The program
 * `mobile` finds it in the same way.
 *
 * Any thread may call both functions at any time; they are not async-signal-safe. A call takes
 * milliseconds; each of its steps times out after 5 seconds. Errors of both functions:
 *
 *   ENOENT, ECONNREFUSED  no agent is running
 *   EACCES                this user may not use the socket
 *   ETIMEDOUT             the agent does not answer
 *   ECONNRESET, EPIPE     the agent closed the connection: it is ending, or this user has too many
 *                         connections to it
 *   EPROTO                the agent did not understand the request: it is of another version
 *   EBADMSG               the agent's configuration cannot be parsed
 *   EIO                   the agent failed; its log has the cause
 *   EMFILE, ENFILE, ...   see socket(2)
 */
#ifndef MOBILE_H
#define MOBILE_H

#include <netinet/in.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Sets (flag 1) or clears (flag 0) the MOBILE attribute of the process `pid`, with all its threads;
 * 0 is the caller. The next connections of the process take the MOBILE route, or the ordinary one;
 * connections that are open keep their route. Children inherit the attribute across fork(), and
 * execve() keeps it. Setting the attribute twice is no error. Another process is named by the ID
 * that the agent sees, which may differ from the one in a container.
 *
 * A user may change processes that run wholly as that user; root and members of the agent's
 * `[control] group` may change any process.
 *
 *   EINVAL      `flag` is neither 0 nor 1, or `pid` is negative or the ID of a thread
 *   ESRCH       the process does not exist
 *   EPERM       the process belongs to another user, or has the rights of one
 *   EOPNOTSUPP  the process is in another network namespace than the agent, where its sockets would
 *               not be marked
 */
int inet_setmobile(int pid, int flag);

/*
 * Ensures that the MOBILE route is in force: the default route, through the host virtual device, of
 * all processes with the MOBILE attribute. The agent owns this route, which leads to its relay, so
 * there is one gateway at a time. When the function returns, the agent has restored any part of the
 * route that another program removed. The relay need not be reachable: packets wait for it.
 *
 * `gateway` is the gateway that the caller expects. Null or INADDR_ANY accepts the present one.
 * Otherwise it is the persistent address (the host virtual device's own) or the address at which
 * the relay is reached at the moment. The port is ignored.
 *
 *   EADDRNOTAVAIL  the MOBILE route leads elsewhere; the agent's configuration decides where
 *   EAFNOSUPPORT   the address is not of family AF_INET
 *   ENETDOWN       there is no MOBILE route yet, because the agent has never reached its relay,
 *                  which assigns the address
 */
int inet_setmroute(const struct sockaddr_in *gateway);

#ifdef __cplusplus
}
#endif

#endif /* MOBILE_H */
