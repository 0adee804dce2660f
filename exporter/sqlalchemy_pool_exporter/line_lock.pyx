# SPDX-License-Identifier: Apache-2.0
"""The lock around straight lines, in C: see ``straight_lines``. Only a build for interpreters without the GIL has it.

The modules that are compiled there lock it by two functions of C, and all others by ``LineLock``. A thread may lock it
again while it has it.
"""

# cython: language_level=3

cdef extern from *:
    """
    /* A thread holds the lock for a few stores. So a thread that wants it looks this often whether it is free, before
       PyMutex_Lock() lets it sleep: without that, two threads with a pool each did 1.1 times the work of one in place of
       1.5 times. While it sleeps, the interpreter can stop it. */
    #define SPE_LOOKS 200

    #if defined(__x86_64__) || defined(__i386__)
    #define spe_pause() __builtin_ia32_pause()
    #elif defined(__aarch64__)
    #define spe_pause() __asm__ __volatile__("yield")
    #else
    #define spe_pause() ((void)0)
    #endif

    static PyMutex spe_mutex;
    static uintptr_t spe_owner;  /* the thread that has it; 0 if none has. Only that thread compares it with its own. */
    static int spe_depth;  /* how often that thread has locked it */

    static inline void spe_lock(void) {
        uintptr_t own = (uintptr_t)PyThread_get_thread_ident();
        if (_Py_atomic_load_uintptr_relaxed(&spe_owner) == own) {
            spe_depth++;
            return;
        }
    #if PY_VERSION_HEX >= 0x030E0000
        for (int look = 0; look < SPE_LOOKS && PyMutex_IsLocked(&spe_mutex); look++) spe_pause();
    #endif
        PyMutex_Lock(&spe_mutex);
        _Py_atomic_store_uintptr_relaxed(&spe_owner, own);
        spe_depth = 1;
    }

    static inline void spe_unlock(void) {
        if (--spe_depth) return;
        _Py_atomic_store_uintptr_relaxed(&spe_owner, 0);
        PyMutex_Unlock(&spe_mutex);
    }

    static inline void spe_renew(void) {
        spe_mutex = (PyMutex){0};
        spe_depth = 0;
        _Py_atomic_store_uintptr_relaxed(&spe_owner, 0);
    }
    """
    void spe_lock() noexcept
    void spe_unlock() noexcept
    void spe_renew() noexcept


cdef void lock_line() noexcept:
    spe_lock()


cdef void unlock_line() noexcept:
    spe_unlock()


cdef class LineLock:
    """The lock, for code that is interpreted. Each object of this class stands for the same one."""

    @property
    def acquired(self) -> bool:
        """Acquire the lock. To read an attribute is no call, after which a time limit could strike."""
        spe_lock()
        return True

    @property
    def released(self) -> None:
        """Release the lock."""
        spe_unlock()

    def _at_fork_reinit(self) -> None:
        spe_renew()
