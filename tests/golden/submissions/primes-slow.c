#include <stdio.h>

/* Trial division by every smaller number: fine for 1000, hopeless for a million. */
int main(void) {
    int n, count = 0;
    scanf("%d", &n);
    for (int i = 2; i <= n; i++) {
        int prime = 1;
        for (volatile int j = 2; j < i; j++)
            if (i % j == 0) prime = 0;
        count += prime;
    }
    printf("%d\n", count);
    return 0;
}
