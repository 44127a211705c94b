#include "rig.h"
const struct conf_case conf_whole[] = { { NULL } };
