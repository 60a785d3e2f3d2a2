//go:build !unix

package dns

import "errors"

const canReadRaw = false

func readRaw(uintptr, []byte) (int, error) { return 0, errors.ErrUnsupported }
