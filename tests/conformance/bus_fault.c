#include "rig.h"
const struct conf_case conf_bus_fault[] = { { NULL } };
