#include <iostream>
#include <numeric>
#include <vector>

int main() {
    std::size_t n;
    std::cin >> n;
    std::vector<long long> xs(n);
    for (auto &x : xs) std::cin >> x;
    std::cout << std::accumulate(xs.begin(), xs.end(), 0LL) << "  \n\n";
}
