#include <stdlib.h>
#include <string.h>

int main(void) {
    for (;;) {
        char *block = malloc(1 << 22);
        if (block) memset(block, 1, 1 << 22);
    }
}
