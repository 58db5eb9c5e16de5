#!/bin/sh
# Test a network on a cluster or, with the partition `local`, on this machine:
#
#     sh tools/dist_test.sh PARTITION JOB_NAME RECIPE CHECKPOINT_OR_WORK_DIR [--eval METRIC,...] [KEY=VALUE ...]
#
# A work dir means its finished student. docs/cluster.md has the variables.
set -eu
. "$(dirname "$0")/launch.sh"

[ $# -ge 4 ] || refuse "usage: sh tools/dist_test.sh PARTITION JOB_NAME RECIPE CHECKPOINT_OR_WORK_DIR [--eval METRIC,...]"
partition=$1 job=$2
shift 2
launch "$partition" "$job" test "$@"
