/* One call of the C library: `ask mobile PID FLAG` or `ask route ADDRESS|null`. Prints 0, or the error number. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mobile.h>

int main(int argc, char *argv[])
{
    int result = -2;

    if (argc == 4 && strcmp(argv[1], "mobile") == 0) {
        result = inet_setmobile(atoi(argv[2]), atoi(argv[3]));
    } else if (argc == 3 && strcmp(argv[1], "route") == 0) {
        struct sockaddr_in gateway;

        memset(&gateway, 0, sizeof gateway);
        gateway.sin_family = AF_INET;
        if (strcmp(argv[2], "null") == 0) {
            result = inet_setmroute(NULL);
        } else if (inet_pton(AF_INET, argv[2], &gateway.sin_addr) == 1) {
            result = inet_setmroute(&gateway);
        }
    }
    if (result < -1) {
        fprintf(stderr, "usage: %s mobile PID FLAG | route ADDRESS|null\n", argv[0]);
        return 2;
    }
    printf("%d\n", result == 0 ? 0 : errno);
    return 0;
}
