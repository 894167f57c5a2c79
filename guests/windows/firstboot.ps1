# SPDX-License-Identifier: GPL-2.0-or-later
# Runs once, elevated, at the first logon: makes a fresh Windows a guest that experiments can use, then shuts it down.
#
# It is read from the CD that it came on. What it says goes to C:\ProgramData\memshare\firstboot.log, and the last line to
# the first serial port: "memshare: ready" or "memshare: error: ...". Either way the guest ends, so nobody waits in vain.
$ErrorActionPreference = 'Stop'

$cd = Split-Path -Parent $PSScriptRoot
$state = Join-Path $env:ProgramData 'memshare'
$programs = 'C:\usr\lib\memshare'
New-Item -ItemType Directory -Force -Path $state, $programs, 'C:\usr\bin' | Out-Null

function Write-SerialLine([string] $line) {
    $port = New-Object System.IO.Ports.SerialPort 'COM1', 115200
    $port.Open()
    $port.Write("$line`r`n")
    $port.Close()
}

function Invoke-Program([string] $program, [string[]] $arguments, [int[]] $good = @(0)) {
    $process = Start-Process -FilePath $program -ArgumentList $arguments -Wait -PassThru -NoNewWindow
    if ($good -notcontains $process.ExitCode) {
        throw "$program $arguments ended with code $($process.ExitCode)"
    }
}

# 3010: done, and a restart is wanted; the guest is shut down anyway.
function Install-Package([string] $package) {
    Invoke-Program 'msiexec.exe' @('/i', "`"$package`"", '/qn', '/norestart') @(0, 3010)
}

# Drivers for what Setup did not need (the balloon's service among it), and the agent. It is started late: when it answers,
# what starts with Windows has started.
function Install-Tools {
    Install-Package (Join-Path $cd 'virtio-win-gt-x64.msi')
    Install-Package (Join-Path $cd 'guest-agent\qemu-ga-x86_64.msi')
    Invoke-Program 'sc.exe' @('config', 'QEMU-GA', 'start=', 'delayed-auto')
}

# A guest that sleeps, or moves its files about, measures nothing. What an edition has not, or does not let go of, is no
# reason to have no guest; it is in the log.
function Disable-Housekeeping {
    Invoke-Program 'powercfg.exe' @('/hibernate', 'off') @(0, 1)
    foreach ($timeout in 'standby-timeout-ac', 'monitor-timeout-ac', 'disk-timeout-ac') {
        Invoke-Program 'powercfg.exe' @('/change', $timeout, '0') @(0, 1)
    }
    Get-ScheduledTask -TaskName 'ScheduledDefrag' -ErrorAction Continue |
        Disable-ScheduledTask -ErrorAction Continue | Out-Null
    Get-Service -Name 'wuauserv', 'UsoSvc', 'SysMain' -ErrorAction Continue |
        Set-Service -StartupType Disabled -ErrorAction Continue
}

# The compiler is part of Windows. The programs are one, under several names.
function Install-Programs {
    $compiler = Join-Path $env:windir 'Microsoft.NET\Framework64\v4.0.30319\csc.exe'
    $sources = Join-Path $PSScriptRoot 'programs\*.cs'
    Invoke-Program $compiler @('/nologo', '/unsafe', '/optimize', '/platform:x64', "/out:$programs\load.exe", $sources)
    foreach ($name in 'integrity', 'report', 'touch') {
        Copy-Item "$programs\load.exe" "$programs\$name.exe" -Force
    }
    Copy-Item "$programs\load.exe" 'C:\usr\bin\systemctl.exe' -Force
    Invoke-Program "$programs\load.exe" @('idle')
    Remove-Item (Join-Path $state 'counters') -ErrorAction SilentlyContinue # a guest has its own, and its own seed
}

Start-Transcript -Path (Join-Path $state 'firstboot.log') | Out-Null
try {
    Install-Tools
    Disable-Housekeeping
    Install-Programs
    $answers = Join-Path $PSScriptRoot 'generalized.xml' # is there when sysprep is asked for
    if (Test-Path $answers) {
        Copy-Item $answers (Join-Path $state 'generalized.xml') -Force
        Write-SerialLine 'memshare: ready'
        Invoke-Program (Join-Path $env:windir 'System32\Sysprep\sysprep.exe') @(
            '/generalize', '/oobe', '/shutdown', '/quiet', "/unattend:$state\generalized.xml")
    } else {
        Write-SerialLine 'memshare: ready'
        Stop-Computer -Force
    }
} catch {
    Write-SerialLine "memshare: error: $($_.Exception.Message -replace '\s+', ' ')"
    Stop-Computer -Force
}
