#include <string>
#include <vector>

int main() {
    std::vector<int> xs;
    xs.push_back(std::string("not a number"));
}
