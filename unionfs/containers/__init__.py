"""Containers: configuration, record, store, root filesystem, start, running, logs, copies, changes, images, removal.

    config, record, store         what a container is: one value, its JSON, its directory
    create, start, launch_spec    from a configuration to a running command (unionfs.launcher)
    rootfs, etc, volume_mounts    what its processes see, mounted by unionfs.drivers
    running, freeze, reach        what is done to one that runs, and to its files
    diff, apply, commit, remove   what becomes of what it changed

Knows no command line: nothing here prints, parses arguments or exits. Failures are `errors.ContainerError` and the
launcher's LaunchError; warnings and progress go to callables that the caller passes.
"""
