#include <stdio.h>

int main(void) {
    int n;
    long long x, sum = 0;
    scanf("%d", &n);
    while (n-- > 0 && scanf("%lld", &x) == 1) sum += x;
    printf("%lld\n", sum);
    return 0;
}
