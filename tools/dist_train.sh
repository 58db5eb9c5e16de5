#!/bin/sh
# Train on a cluster or, with the partition `local`, on this machine:
#
#     sh tools/dist_train.sh PARTITION JOB_NAME RECIPE WORK_DIR [KEY=VALUE ...]
#
# STAGE=teacher|pretrain|train|run says what (default run: all that is not up to date). docs/cluster.md has the other variables.
set -eu
. "$(dirname "$0")/launch.sh"

[ $# -ge 4 ] || refuse "usage: sh tools/dist_train.sh PARTITION JOB_NAME RECIPE WORK_DIR [KEY=VALUE ...]"
partition=$1 job=$2 recipe=$3 work=$4
shift 4
stage=${STAGE:-run}
case $stage in
teacher | pretrain | train | run) ;;
*) refuse "STAGE is $stage; it must be teacher, pretrain, train or run" ;;
esac
launch "$partition" "$job" "$stage" "$recipe" --work-dir "$work" "$@"
