#include <stdio.h>
#include <unistd.h>

/* Right, after a nap that is well below the wall limit: a job that lasts a while. */
int main(void) {
    int n;
    long long x, sum = 0;
    usleep(500 * 1000);
    scanf("%d", &n);
    while (n-- > 0 && scanf("%lld", &x) == 1) sum += x;
    printf("%lld\n", sum);
}
