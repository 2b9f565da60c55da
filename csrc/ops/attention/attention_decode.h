/*
 * Decoding with few queries a sequence: how the keys of all sequences are dealt out to blocks. Read by the host compiler and by NVRTC alike.
 *
 * A unit is one sequence under `head_warps` neighbouring key heads. Its keys are cut into granules of 16 * key_warps keys, and the granules of
 * all units, in the order of sequences and then of heads, are one long row of which each block takes an equal share. A block thus works
 * on the end of one unit, some whole ones, and the beginning of another; what is not whole goes to scratch memory and a second kernel
 * puts it together. A block has at most one unit that began in an earlier block (slot 2 * block) and one that it begins and does not end
 * (slot 2 * block + 1).
 *
 * Where numbers must not depend on the batch, the places where a unit is cut must not: its keys are cut into parts of equal length by how many they are, and
 * blocks take whole parts, those that begin in their shares. A unit is then one key head under at most 16 rows of a sequence, which may have more; parts
 * stand in the order of key heads, parts, rows, and each sequence has as many slots.
 */
#ifndef SGK_ATTENTION_DECODE_H
#define SGK_ATTENTION_DECODE_H
#include "attention.h"

struct attention_decode_args {
    struct attention_args a;
    int32_t               head_warps, key_warps;            /* of a block */
    int32_t               units;                            /* of a sequence: kv_heads / head_warps */
    int32_t               rows;                             /* max_q * group, at most 16 */
    int32_t               blocks;
    int32_t               second_blocks;                    /* of the second kernel, for each sequence */
    int32_t               join;                             /* above 1: so many blocks, a cluster, have a unit of the only sequence */
    int32_t               join_shift;                       /* whose steps are 1 << join_shift keys apart */
    int32_t               slots;                            /* of a sequence; 0: units are cut where shares end */
    int32_t               page_shift;                       /* page_size is 1 << page_shift; below 0: it is not, or there are no pages */
    uint32_t              k_batch, k_row, v_batch, v_row;   /* strides in pieces of 16 bytes */
    float                *partial_out, *partial_lse;        /* [2 * blocks, head_warps, rows], of parts [batch, slots, rows]; times dim; times 1 */
};

/* The keys that any query of a sequence sees. */
ATTENTION_FN struct attention_keys attention_decode_keys(const struct attention_args *a, const struct attention_sequence *s)
{
    const struct attention_keys keys = { attention_keys_of(a, s, 0).begin, attention_keys_of(a, s, s->sq - 1).end };
    return keys;
}

/* Of one unit of a sequence; one at least, which writes the result where no key is seen. */
ATTENTION_FN int32_t attention_decode_granules(const struct attention_decode_args *d, const struct attention_sequence *s)
{
    if (s->sq <= 0) return 0;
    const struct attention_keys keys = attention_decode_keys(&d->a, s);
    const int32_t               each = 16 * d->key_warps, count = (keys.end - keys.begin + each - 1) / each;
    return count > 1 ? count : 1;
}

/* Of all units of sequence n. */
ATTENTION_FN int32_t attention_decode_granules_of(const struct attention_decode_args *d, int32_t n)
{
    const struct attention_sequence s = attention_sequence_of(&d->a, n);
    return d->units * attention_decode_granules(d, &s);
}

/* Parts are counted in chunks of so many keys, which whole granules are. */
#define ATTENTION_DECODE_CHUNK 512
#define ATTENTION_DECODE_PARTS 32                   /* of a sequence's keys, at most */
#define ATTENTION_DECODE_ROWS  16                   /* of a unit that is cut into parts */

/* How the keys of a sequence are cut: few parts of few keys where these are few, so that a lone sequence is on many blocks; of more where there are more,
 * as each part costs time besides. */
struct attention_decode_cut { int32_t each, parts, blocks; };   /* chunks of a part; parts of a unit; units of a key head */

ATTENTION_FN int32_t attention_decode_chunks(int32_t keys)
{
    const int32_t chunks = (keys + ATTENTION_DECODE_CHUNK - 1) / ATTENTION_DECODE_CHUNK;
    return chunks > 1 ? chunks : 1;
}

ATTENTION_FN struct attention_decode_cut attention_decode_cut_of(const struct attention_decode_args *d, const struct attention_sequence *s)
{
    struct attention_decode_cut cut = { 1, 0, 0 };
    if (s->sq <= 0) return cut;
    const struct attention_keys keys   = attention_decode_keys(&d->a, s);
    const int32_t               chunks = attention_decode_chunks(keys.end - keys.begin);
    cut.each                           = chunks <= 8 ? 1 : chunks <= 2 * ATTENTION_DECODE_PARTS ? 2
                                                                                                : (chunks + ATTENTION_DECODE_PARTS - 1) / ATTENTION_DECODE_PARTS;
    cut.parts                          = (chunks + cut.each - 1) / cut.each;
    cut.blocks                         = (s->sq * d->a.group + ATTENTION_DECODE_ROWS - 1) / ATTENTION_DECODE_ROWS;
    return cut;
}

/* All parts of sequence n, in chunks as if the last one of a unit were as long as the others. */
ATTENTION_FN int32_t attention_decode_chunks_of(const struct attention_decode_args *d, int32_t n)
{
    const struct attention_sequence   s   = attention_own_sequence(&d->a, n);
    const struct attention_decode_cut cut = attention_decode_cut_of(d, &s);
    return d->units * cut.blocks * cut.parts * cut.each;
}

/* Divisions of 64 bits take long. */
ATTENTION_FN int32_t attention_decode_divided(uint64_t x, uint32_t y) { return (int32_t)(x >> 32 ? (uint32_t)(x / y) : (uint32_t)x / y); }

/* The first of a block's granules, of `all`; where there are fewer granules than blocks, the first blocks have one each. */
ATTENTION_FN int32_t attention_decode_begin(const struct attention_decode_args *d, int32_t all, int32_t block)
{
    if (all < d->blocks) return block < all ? block : all;
    return attention_decode_divided((uint64_t)all * (uint64_t)block, (uint32_t)d->blocks);
}

/* The block that has a granule. */
ATTENTION_FN int32_t attention_decode_owner(const struct attention_decode_args *d, int32_t all, int32_t granule)
{
    if (all < d->blocks) return granule;
    return attention_decode_divided((uint64_t)(granule + 1) * (uint64_t)d->blocks - 1, (uint32_t)all);
}

#endif
