#!/bin/sh
# Builds the program with MPI and compares two processes of mpiexec with one process of two replicas:
#
#     runs/mpi.sh OUT
#
# Needs an MPI library with mpicc and mpiexec, and libclang: on Debian the packages libopenmpi-dev,
# openmpi-bin and libclang-dev; in a virtual environment `pip install mpich libclang` (then set
# LIBCLANG_PATH to the folder clang/native of the package and put its bin folder into PATH).
set -eu
cargo build --release --locked --package clasp --features mpi
exec python3 runs/ranks.py target/release/clasp "$1" --mpiexec mpiexec
