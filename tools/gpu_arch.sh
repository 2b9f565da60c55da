#!/bin/sh
# Prints the pack that this machine's first GPU needs: 80, 89, 90a, 100f or 120f; nothing without one.
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1)
case "$capability" in
    8.0 | 8.6 | 8.7) echo 80 ;;
    8.9) echo 89 ;;
    9.0) echo 90a ;;
    10.*) echo 100f ;;
    12.*) echo 120f ;;
esac
