/* SPDX-License-Identifier: Apache-2.0
 *
 * The file that holds the software CPU: the extension module of the bochscpu-python wheel.
 *
 * It is used as a plain shared library, never as a Python module. What this engine relies on (symbols, field
 * offsets) belongs to one build of it, so no other is loaded.
 */
#ifndef VMSESSION_SOFT_LIBRARY_H
#define VMSESSION_SOFT_LIBRARY_H

#include "engine.h"

#define SOFT_LIBRARY_VARIABLE "VMSESSION_BOCHS" /* environment: the path of the file */
#define SOFT_LIBRARY_BUILD_ID "0dde8887f893634c4d2c0bb64d399f85487a9aa3"
#define SOFT_LIBRARY_PACKAGE "bochscpu-python==0.4.0 for CPython 3.11"

/* Open the file and check its GNU build-id note. The caller owns *fd.
 * CHANNEL_UNSUPPORTED: no path given, not an ELF file, truncated, or another build; CHANNEL_KERNEL: unreadable. */
enum channel_status soft_library_open(int *fd, struct failure *);

/* A private, sealed copy of the file in memory, without its instrumentation. The caller owns *fd. */
enum channel_status soft_library_copy(int library, int *fd, struct failure *);

#endif
