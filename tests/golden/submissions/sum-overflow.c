#include <stdio.h>

/* A 32-bit sum: right for the small tasks, wrong for the last one. */
int main(void) {
    int n, x;
    unsigned sum = 0;
    scanf("%d", &n);
    while (n-- > 0 && scanf("%d", &x) == 1) sum += (unsigned)x;
    printf("%d\n", (int)sum);
    return 0;
}
