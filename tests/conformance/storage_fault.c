#include "rig.h"
const struct conf_case conf_storage_fault[] = { { NULL } };
