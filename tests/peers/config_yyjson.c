/* config_yyjson.c - yyjson's verdict on each file of the arguments: a line "0 file" (accepted) or "1 file", as ds json's exit
   status. */
#include <stdio.h>
#include <stdlib.h>
#include <yyjson.h>

int main(int argc, char **argv) {
    static char text[1 << 20];
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        yyjson_doc *doc;
        size_t bytes;
        if (!file) return perror(argv[i]), 3;
        bytes = fread(text, 1, sizeof text, file);
        fclose(file);
        doc = yyjson_read(text, bytes, 0);
        printf("%d %s\n", doc == NULL, argv[i]);
        yyjson_doc_free(doc);
    }
    return 0;
}
