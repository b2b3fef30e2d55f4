"""Containers: configuration, record, store, root filesystem, start, running, logs, copies, changes, images, removal.

    config, record, store         one value for a container, its JSON, its directory
    create, start, launch_spec    from a configuration to a running command (unionfs.launcher)
    rootfs, etc, volume_mounts    the files that its processes see; unionfs.drivers mounts them
    running, freeze, root_access  act on a running container, and on its files
    diff, apply, commit, remove   list, apply, store or discard its changes

Knows no command line: nothing here prints, parses arguments or exits. Failures are `errors.ContainerError` and the
launcher's LaunchError; warnings and progress go to callables that the caller passes.
"""
