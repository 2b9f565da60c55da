/* sgk-check: the check of the library beside it. */
#include "check/front.h"

int main(int argc, char **argv) { return sgk_check_main(argc, argv); }
