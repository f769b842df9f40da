/* Many threads call at once: `threads PID`. Prints how many calls failed. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include <mobile.h>

enum { THREADS = 8, CALLS = 50 };

static int pid;

static void *calls(void *failed)
{
    int call;

    for (call = 0; call < CALLS; call++) {
        *(int *)failed += inet_setmobile(pid, call % 2) != 0;
    }
    return NULL;
}

int main(int argc, char *argv[])
{
    pthread_t threads[THREADS];
    int failed[THREADS] = { 0 };
    int thread, sum = 0;

    pid = argc > 1 ? atoi(argv[1]) : 0;
    for (thread = 0; thread < THREADS; thread++) {
        if (pthread_create(&threads[thread], NULL, calls, &failed[thread]) != 0) {
            perror("pthread_create");
            return 1;
        }
    }
    for (thread = 0; thread < THREADS; thread++) {
        pthread_join(threads[thread], NULL);
        sum += failed[thread];
    }
    printf("%d\n", sum);
    return 0;
}
