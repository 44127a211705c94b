/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loading modules: see module.h.
 *
 * Always true: a module that was loaded stays. Many client libraries start threads or register handlers that do not survive an unloading,
 * and a daemon uses one bus and one storage for its whole life. Called by the registry, on the loop thread.
 */
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "module.h"

static const char *set_folder;

void om_module_set_folder(const char *folder) { set_folder = folder; }

/* PREFIX/bin/omnidaemond → PREFIX/lib/omnidaemon; proc(5) says what /proc/self/exe is. */
static const char *default_folder(void) {
        static char folder[PATH_MAX + 32];
        ssize_t n;
        if (folder[0])
                return folder;
        n = readlink("/proc/self/exe", folder, PATH_MAX);
        folder[n > 0 ? n : 0] = 0;
        for (int up = 0; up < 2; up++) {
                char *slash = strrchr(folder, '/');
                if (slash)
                        *slash = 0;
        }
        strcat(folder, "/lib/omnidaemon");
        return folder;
}

const char *om_module_folder(void) { return set_folder ? set_folder : default_folder(); }

static int path_of(const char *file, char out[PATH_MAX]) {
        int n = snprintf(out, PATH_MAX, "%s/%s", om_module_folder(), file);
        return n > 0 && n < PATH_MAX ? 0 : -ENAMETOOLONG;
}

bool om_module_is_there(const char *file) {
        char path[PATH_MAX];
        return path_of(file, path) == 0 && access(path, R_OK) == 0;
}

int om_module_load(const char *file, const char *symbol, const void **ret, struct om_error *e) {
        char path[PATH_MAX];
        const void *found;
        void *module;
        if (path_of(file, path) < 0 || access(path, R_OK) < 0)
                return -ENOENT;
        module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!module) {
                om_error_set(e, OM_UNSUPPORTED, "%s", dlerror());
                return -ELIBBAD;
        }
        found = dlsym(module, symbol);
        if (!found) {
                om_error_set(e, OM_UNSUPPORTED, "%s: no module of OmniDaemon: it lacks %s", path, symbol);
                dlclose(module);
                return -ELIBBAD;
        }
        *ret = found;
        return 0;
}
