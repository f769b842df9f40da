/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The program of the paper's figure 3: `mobile COMMAND ARGUMENT...` gives itself the MOBILE
 * attribute and then executes the command, which inherits the attribute without knowing of it.
 *
 *   cc -o mobile mobile.c $(pkg-config --cflags --libs mobile)
 */
#include <stdio.h>
#include <unistd.h>

#include <mobile.h>

int main(int argc, char *argv[])
{
    if (argc < 2) {
        fprintf(stderr, "usage: %s command [argument ...]\n", argv[0]);
        return 2;
    }
    if (inet_setmroute(NULL) != 0) {
        perror("inet_setmroute");
        return 125;
    }
    if (inet_setmobile(getpid(), 1) != 0) {
        perror("inet_setmobile");
        return 125;
    }
    execvp(argv[1], &argv[1]);
    perror(argv[1]);
    return 127;
}
