/* The pack reader's rejection test; only where there is GPU code (SGK_HAVE_CUDA). */
#ifndef SGK_PACK_CHECK_H
#define SGK_PACK_CHECK_H

/* Takes a good pack and damages copies of it, `rounds` times at random beside the fixed ways. Prints and counts what went wrong. */
int check_pack(const char *pack_path, int rounds);

#endif
