# The project's own tests, on a KVM that lacks nothing; `lab.py run --tests PACKAGE` brings them.

# own PROGRAM ARGUMENTS...: every test passes, and none skips itself: what this host lacks is a fault of the lab.
own() {
  local program=$1; shift
  [ -x "/tests/$program" ] || { fail "no /tests/$program: lab.py run --tests"; return; }
  # Where the tests were built, they look for the project.
  mkdir -p "$PROJECT/tests"
  CARGO=$HERE/built "/tests/$program" --nocapture --test-threads=1 "$@" >"$W/tests.out" 2>&1
  local status=$? result; result=$(sed -n 's/^test result: //p' "$W/tests.out")
  note "${result:-no result}"
  [ $status = 0 ] && grep -q ' [1-9][0-9]* passed' <<<"$result" || { tail -n 30 "$W/tests.out"; return 1; }
  ! grep SKIPPED "$W/tests.out"
}
check_hypervisor_tests() { own hypervisor kvm::tests; }
check_snapshot_clocks() { own snapshot the_clocks_go_on && ! grep 'only kvmclock' "$W/tests.out"; }
check_snapshot_tests() { own snapshot; }
