#include <cstdio>
#include <vector>

int main() {
    int n, count = 0;
    if (std::scanf("%d", &n) != 1) return 1;
    std::vector<char> composite(n + 1);
    for (long long i = 2; i <= n; i++) {
        if (composite[i]) continue;
        count++;
        for (long long j = i * i; j <= n; j += i) composite[j] = 1;
    }
    std::printf("%d\n", count);
}
