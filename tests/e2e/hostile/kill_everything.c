#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <unistd.h>

/* Kill, stop, trace and overwrite every process that can be seen. */
int main(void) {
    char path[64];
    for (pid_t pid = 1; pid < 40000; pid++) {
        if (pid == getpid()) continue;
        ptrace(PTRACE_ATTACH, pid, 0, 0);
        kill(pid, SIGSTOP);
        kill(pid, SIGKILL);
        snprintf(path, sizeof path, "/proc/%d/mem", (int)pid);
        int memory = open(path, O_RDWR);
        if (memory >= 0) {
            printf("could open the memory of %d\n", (int)pid);
            write(memory, path, sizeof path);
        }
    }
    kill(-1, SIGKILL);
    puts("still here");
    return 0;
}
