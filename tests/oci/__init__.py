"""Tests of unionfs.oci: alone, beside runc and crun, and under the engines that call it."""
