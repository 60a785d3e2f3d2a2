package main

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// toJournal says whether w is the stream to the journal that the service manager names. It may have been redirected
// since (systemd.exec(5), $JOURNAL_STREAM).
func toJournal(w io.Writer, stream string) bool {
	f, ok := w.(*os.File)
	if !ok || stream == "" {
		return false
	}
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && stream == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}
