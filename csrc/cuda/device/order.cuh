/* Loads and stores as they are written, where the compiler would make something else of them. */
#pragma once
#include "types.cuh"

/* What was loaded is asked for before this: otherwise a load moves down to where its result is sure to be needed, behind other waits. */
DEVICE void on_its_way(uint4 &p) { asm volatile("" : "+r"(p.x), "+r"(p.y), "+r"(p.z), "+r"(p.w)); }
DEVICE void on_its_way(uint2 &p) { asm volatile("" : "+r"(p.x), "+r"(p.y)); }
DEVICE void on_its_way(uint32_t &p) { asm volatile("" : "+r"(p)); }
DEVICE void on_its_way(uint16_t &p) { asm volatile("" : "+h"(p)); }
DEVICE void on_its_way(uint8_t &p)
{
    uint32_t u = p;
    on_its_way(u);
    p = (uint8_t)u;
}
DEVICE void on_its_way(f32 &p) { asm volatile("" : "+f"(p)); }
DEVICE void on_its_way(f16 &p) { on_its_way(p.bits); }
DEVICE void on_its_way(bf16 &p) { on_its_way(p.bits); }

/* One store: the compiler may make four of it where it sees through what is stored. */
DEVICE void store16(void *p, uint4 v) { asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory"); }
