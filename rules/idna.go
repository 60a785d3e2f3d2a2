package rules

import "errors"

func toALabels(name string) (string, error) { return "", errors.ErrUnsupported }
